"""Checks before a run, with remedies (`examine`), and estimates of its time and memory (`rescoldo.doctor.plan`)."""
