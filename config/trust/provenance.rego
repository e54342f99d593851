package signature

# The statement of the attestation is `input`.
allow if input.predicate.buildDefinition.buildType == "https://actions.github.io/buildtypes/workflow/v1"
