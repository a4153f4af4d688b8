"""Students that know what is normal."""
