"""What goes inside a network: gradient balancing."""

from bessemer.layers.balance import Balance, balance, rates, report_misclassified

__all__ = ["Balance", "balance", "rates", "report_misclassified"]
