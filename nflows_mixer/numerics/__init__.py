"""Numerical methods: inverses of masked and monotone functions, gradients of solutions."""
