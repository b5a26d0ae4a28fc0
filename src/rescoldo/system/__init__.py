"""The machine: processor, memory, clock, cgroup limits, causes of slowness. Of this package it imports only errors,
files and units."""
