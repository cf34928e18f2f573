"""Adversarial training at scale: Xie and Yuille, with logit pairing, feature denoising and AdvProp.

What the scale `cpu` takes, reckoned from a few training steps and attack steps of each network on one core that was
busy with other work, for all networks of a reproduction together: ratio 105 minutes; alp another 65 beside ratio and
mbn; mbn another 120 beside ratio; depth 120; denoise 115 beside ratio; advprop 65. Networks that two of them need are
trained once.
"""
