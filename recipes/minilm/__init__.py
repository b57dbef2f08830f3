"""General distillation as in MiniLMv2: a small encoder learns a large one's attention relations from plain text."""
