# Changes of production only in office hours, and by two teams.
package assay.authz

default allow := false

allow if count(reason) == 0

writes if endswith(input.verb, ".write")

reason contains "production is changed from 08:00 to 18:00 UTC only" if {
	writes
	some e in input.request.entries
	startswith(e.spiffe_id.path, "/prod/")
	[hour, _, _] := time.clock(time.now_ns())
	not in_office(hour)
}

in_office(hour) if {
	hour >= 8
	hour < 18
}

reason contains "only the platform team changes nodes" if {
	input.verb == "node.write"
	not startswith(input.caller.spiffe_id, "spiffe://example.org/platform/")
}
