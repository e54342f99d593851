package authz_test

import data.authz

test_readers_read if {
	authz.allow with input as {"user": {"name": "ann", "roles": ["reader"]}, "action": "read"}
}

test_readers_do_not_write if {
	not authz.allow with input as {
		"user": {"name": "ann", "roles": ["reader"]},
		"action": "write",
		"document": {"owner": "bob"},
	}
}

test_owners_write if {
	authz.allow with input as {
		"user": {"name": "bob", "roles": []},
		"action": "write",
		"document": {"owner": "bob"},
	}
}
