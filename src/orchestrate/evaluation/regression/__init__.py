"""Did it forget anything: probes that need no network, own sets, and other people's tasks, judged by
non-inferiority."""
