"""One function for each verb. Stages meet only through the files of a run directory."""
