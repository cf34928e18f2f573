"""What training did to the features of a network: measured, decomposed, reconstructed and made visible.

After Allen-Zhu and Li, "Feature purification: how adversarial training performs robust deep learning", 2021,
arXiv:2005.10190. `sparse_coding` is the laboratory where everything can be computed; the other files ask the same
questions of real networks.
"""
