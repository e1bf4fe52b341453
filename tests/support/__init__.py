"""What several tests share: references, servers, clusters, trainings as processes, and the programs that tests start."""
