"""Measurements that back the claims of this project; ``benchmarks.paper`` holds those of the paper."""
