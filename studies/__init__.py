"""What trainings reach, several seeds each: `python -m studies.study_NAME`, or the Makefile's `study-NAME`."""
