"""`python -m trainer.report RUN`: one HTML page about one run or several."""
