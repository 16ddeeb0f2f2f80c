"""What Prometheus and Grafana read: whom to scrape, rules, alerts, dashboards.

`targets` is written by a fleet's door while it runs; `writing` puts the rest into a folder. Queries are in `rules.yml`,
once; dashboards and alerts use the series that it records.
"""
