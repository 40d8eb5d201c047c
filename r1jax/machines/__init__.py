"""Where it runs: the mesh and its one table of rules, hosts, processes, what serves one CPU."""
