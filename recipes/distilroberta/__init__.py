"""Reproduces DistilRoBERTa: distils half of RoBERTa's layers on OpenWebText by masked language modelling."""
