"""`python -m bessemer` is `bessemer`; with several processes `torchrun --nproc-per-node 2 -m bessemer evaluate …`."""

from bessemer.cli import main

if __name__ == "__main__":
    main()
