"""The only room that imports Ray: thin files that hand pure functions to a cluster."""
