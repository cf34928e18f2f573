"""Which of two recipes holds better? Train both (shortened), attack both on the same images, lay them side by side."""

import bessemer as bs

SHORTER = ["training.iterations=150", "training.validate_every=50"]

folders = []
for recipe in ("digits", "adversarial-digits"):
    folder = f"runs/{recipe}"
    # resume: a second call of this script goes on where the first one stopped, and finds everything done
    model = bs.train(bs.Recipe.named(recipe, SHORTER), folder, resume=True)
    found = bs.evaluate(model, bs.data.load("digits"), suite="quick", threat=bs.Linf(0.1), samples=200, name=recipe)
    found.save(f"{folder}/records")
    folders.append(folder)
    print(f"{recipe}: {found.clean_accuracy()} clean, {found.worst_case()} in the worst case at {found.threat}")

print(f"Side by side in {bs.report(folders, 'compare.html')}")
