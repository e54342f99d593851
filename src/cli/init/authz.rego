# METADATA
# title: Who may do what
package authz

# METADATA
# description: Readers may read; the owner of a document may do anything with it.
# entrypoint: true
default allow := false

allow if {
	input.action == "read"
	"reader" in input.user.roles
}

allow if input.user.name == input.document.owner
