# Who may have which SVID signed, and for how long.
package assay.issue

result := {
	"allow": allow,
	"deny": deny,
	"ttl": ttl,
	"minimum_tier": minimum_tier,
}

default allow := false

# Production is for machines that showed lately what they booted.
allow if {
	production
	input.node.quote_age < 3600
}

allow if not production

production if startswith(input.entry.spiffe_id, "spiffe://example.org/prod/")

deny contains "shells get no identity" if input.facts.executable.path in {"/bin/sh", "/bin/bash"}

deny contains sprintf("started by %s, which may not start services", [a.path]) if {
	some a in input.facts.lineage
	a.path == "/usr/sbin/sshd"
}

default ttl := 3600

ttl := 300 if production

default minimum_tier := "t3"

minimum_tier := "t2" if production
