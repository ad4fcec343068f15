"""The operations of the network, one module a platform with the same functions."""
