"""Asset checks, one file a group; blocking ones stand between an artefact and whoever uses it."""
