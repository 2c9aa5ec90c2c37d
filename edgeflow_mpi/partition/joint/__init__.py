"""One search over a whole plan: breakpoints, recomputation, boundary order, devices."""
