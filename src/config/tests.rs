//! Table tests over whole configurations.
