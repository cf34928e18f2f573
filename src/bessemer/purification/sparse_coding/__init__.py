"""The laboratory: sparse-coding data and two-layer networks, where every claim can be checked exactly."""
