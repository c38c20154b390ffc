"""The network of VMs with real namespaces, links, rules and packets, on a host that is a network namespace itself."""
