"""How the model is deployed: prefill and decode as two engines (report, section 3.4)."""
