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

# What the user's roles allow, as a set; the answer says why something is allowed.
rights contains right if {
	some role in data.directory.roles[input.user]
	some right in data.directory.rights[role]
}
