"""Allen-Zhu and Li, "Feature purification: how adversarial training performs robust deep learning", 2021."""
