"""Series in, prepared volumes out: numpy, pandas, pyarrow and pydicom; neither torch nor Ray."""
