"""The generalisation matrix: trained on one domain, tested on all."""
