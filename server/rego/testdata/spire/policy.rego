# As SPIRE's default policy, and its example: some callers may create entries for others' agents.
package spire

result := {
	"allow": allow,
	"allow_if_admin": allow_if_admin,
	"allow_if_local": allow_if_local,
	"allow_if_downstream": allow_if_downstream,
	"allow_if_agent": allow_if_agent,
}

default allow := false

default allow_if_admin := false

default allow_if_downstream := false

default allow_if_local := false

default allow_if_agent := false

# The table of methods is the policy's data.
allow_if_admin if api.allow_admin

allow_if_local if api.allow_local

allow_if_downstream if api.allow_downstream

api := a if {
	some a in data.apis
	a.full_method == input.full_method
}

# Creating entries for certain subjects.
allow if {
	input.full_method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
	input.caller in data.entry_create_namespaces[namespace].callers
	every e in input.req.entries {
		startswith(e.spiffe_id.path, namespace)
	}
}
