"""What every backend with virtual machines shares: the guest's fixed identity, namespaces, disks, memory, processes."""
