"""Before a run: checks with their remedies (`examine`), and what the run will take (`rescoldo.doctor.plan`)."""
