"""The benchmark behind ``make bench``. No tests: nothing here is collected by pytest."""
