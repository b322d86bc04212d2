"""Did it help? Models asked the questions of benchmarks, and of data of one's own, on Ray."""
