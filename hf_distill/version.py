"""The version of hf_distill. All other files read it from here."""

__version__ = "0.1.0"
