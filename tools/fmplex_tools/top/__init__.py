"""What ``fmplex top`` is made of: scraping, figures of an interval, tables."""
