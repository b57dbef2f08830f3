"""A student of half of RoBERTa's layers, from scratch: masked language modelling on OpenWebText, beside its teacher."""
