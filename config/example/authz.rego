# METADATA
# title: Who may do what with a document
# description: >
#   Roles give rights, and a document's owner may do everything with it. `input` is
#   { "user": …, "action": …, "document": { "owner": … } }; see input.json.
package authz

import rego.v1

default allow := false

allow if input.action in rights

allow if input.user == input.document.owner

# The rights of the user's roles, as a set, so that the answer shows why a request is allowed.
rights contains right if {
	some role in data.directory.roles[input.user]
	some right in data.directory.rights[role]
}
