"""How processes start. Never imports torch."""
