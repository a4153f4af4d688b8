"""How what runs make is scored: one file per way. Every row of a report goes through one of them."""
