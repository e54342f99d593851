package authz_test

import data.authz
import rego.v1

directory := {
	"roles": {"alice": ["editor"], "bob": ["reader"]},
	"rights": {"editor": ["read", "write"], "reader": ["read"]},
}

asked(user, action) := {"user": user, "action": action, "document": {"owner": "carol"}}

test_an_editor_may_write if {
	authz.allow with input as asked("alice", "write") with data.directory as directory
}

test_a_reader_may_read_but_not_write if {
	authz.allow with input as asked("bob", "read") with data.directory as directory
	not authz.allow with input as asked("bob", "write") with data.directory as directory
}

test_an_owner_may_do_everything if {
	authz.allow with input as asked("carol", "delete") with data.directory as directory
}

test_strangers_may_do_nothing if {
	not authz.allow with input as asked("mallory", "read") with data.directory as directory
	not authz.allow with input as {} with data.directory as directory
}
