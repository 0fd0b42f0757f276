"""What a run will need, before it is started: `navit-clip plan`. Its assumptions: docs/scaling.md."""
