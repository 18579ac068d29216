"""Consentry: a vehicle-side telematics agent that lets out only what the owner consented to."""
