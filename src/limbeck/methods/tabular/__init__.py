"""Tables: what is made in their place, and what learns from them."""
