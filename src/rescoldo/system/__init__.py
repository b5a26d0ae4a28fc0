"""What the machine is and has: processor, memory, clock, cgroup limits, causes of slowness. Imports nothing else of the
package but errors, files and units."""
