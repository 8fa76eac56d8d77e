// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"maps"
	"slices"
)

// access is a set of kinds of callers.
type access uint8

const (
	anyone     access = 1 << iota
	local             // came through the Unix socket
	admin             // holds an SVID of an entry with admin
	downstream        // holds an SVID of an entry with downstream
	agent             // holds the active SVID of an admitted node
)

const operators = local | admin

// permissions is who may call what. A method that is not here can not be called.
var permissions = map[string]access{
	"/spire.api.server.agent.v1.Agent/AttestAgent":     anyone,
	"/spire.api.server.agent.v1.Agent/RenewAgent":      agent,
	"/spire.api.server.agent.v1.Agent/PostStatus":      agent,
	"/spire.api.server.agent.v1.Agent/CountAgents":     operators,
	"/spire.api.server.agent.v1.Agent/ListAgents":      operators,
	"/spire.api.server.agent.v1.Agent/GetAgent":        operators,
	"/spire.api.server.agent.v1.Agent/BanAgent":        operators,
	"/spire.api.server.agent.v1.Agent/DeleteAgent":     operators,
	"/spire.api.server.agent.v1.Agent/CreateJoinToken": operators,

	"/spire.api.server.entry.v1.Entry/CountEntries":          operators,
	"/spire.api.server.entry.v1.Entry/ListEntries":           operators,
	"/spire.api.server.entry.v1.Entry/GetEntry":              operators,
	"/spire.api.server.entry.v1.Entry/BatchCreateEntry":      operators,
	"/spire.api.server.entry.v1.Entry/BatchUpdateEntry":      operators,
	"/spire.api.server.entry.v1.Entry/BatchDeleteEntry":      operators,
	"/spire.api.server.entry.v1.Entry/GetAuthorizedEntries":  agent,
	"/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries": agent,

	"/spire.api.server.svid.v1.SVID/MintX509SVID":        operators,
	"/spire.api.server.svid.v1.SVID/MintJWTSVID":         operators,
	"/spire.api.server.svid.v1.SVID/MintWITSVID":         operators,
	"/spire.api.server.svid.v1.SVID/BatchNewX509SVID":    agent,
	"/spire.api.server.svid.v1.SVID/NewJWTSVID":          agent,
	"/spire.api.server.svid.v1.SVID/BatchNewWITSVID":     agent,
	"/spire.api.server.svid.v1.SVID/NewDownstreamX509CA": downstream,

	"/spire.api.server.bundle.v1.Bundle/GetBundle":                  anyone,
	"/spire.api.server.bundle.v1.Bundle/CountBundles":               operators,
	"/spire.api.server.bundle.v1.Bundle/AppendBundle":               operators,
	"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority":        downstream,
	"/spire.api.server.bundle.v1.Bundle/PublishWITAuthority":        downstream,
	"/spire.api.server.bundle.v1.Bundle/ListFederatedBundles":       operators,
	"/spire.api.server.bundle.v1.Bundle/GetFederatedBundle":         operators | agent,
	"/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle": operators,
	"/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle": operators,
	"/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle":    operators,
	"/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle": operators,

	"/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships":       operators,
	"/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship":         operators,
	"/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship": operators,
	"/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship": operators,
	"/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship": operators,
	"/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle":                     operators,

	"/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState":       operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority":        operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority":       operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority":          operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority":         operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState":        operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority":         operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority":        operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority":           operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority":          operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState":        operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority":         operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority":        operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority":           operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority":          operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority":  operators,
	"/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority": operators,

	"/assay.node.v1.Node/Watch":        agent,
	"/assay.node.v1.Node/SignX509SVID": agent,
	"/assay.node.v1.Node/SignJWTSVID":  agent,
	"/assay.node.v1.Node/SignWITSVID":  agent,
	"/assay.node.v1.Node/Requote":      agent,
	"/assay.node.v1.Node/RevokeSVID":   agent,

	"/assay.nodeadmin.v1.NodeAdmin/ListNodes":       operators,
	"/assay.nodeadmin.v1.NodeAdmin/GetNode":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Approve":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Suspend":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Readmit":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Ban":             operators,
	"/assay.nodeadmin.v1.NodeAdmin/ListInventory":   operators,
	"/assay.nodeadmin.v1.NodeAdmin/AddInventory":    operators,
	"/assay.nodeadmin.v1.NodeAdmin/RemoveInventory": operators,
	"/assay.nodeadmin.v1.NodeAdmin/ListRoots":       operators,
	"/assay.nodeadmin.v1.NodeAdmin/CheckNodes":      operators,

	"/assay.revocation.v1.Revocation/Revoke":      operators,
	"/assay.revocation.v1.Revocation/ListRevoked": operators,
	"/assay.revocation.v1.Revocation/ListCRLs":    operators,

	"/spire.api.server.debug.v1.Debug/GetInfo":         local,
	"/spire.api.server.logger.v1.Logger/GetLogger":     local,
	"/spire.api.server.logger.v1.Logger/SetLogLevel":   local,
	"/spire.api.server.logger.v1.Logger/ResetLogLevel": local,
	"/grpc.health.v1.Health/Check":                     local,
	"/grpc.health.v1.Health/List":                      local,
	"/grpc.health.v1.Health/Watch":                     local,
}

// verbs are the methods that a role may allow, by the name under which it does. Each of them looks
// at every single entry, node or trust domain that it is about (Scope).
var verbs = map[string]string{
	"/spire.api.server.entry.v1.Entry/CountEntries":     "entry.read",
	"/spire.api.server.entry.v1.Entry/ListEntries":      "entry.read",
	"/spire.api.server.entry.v1.Entry/GetEntry":         "entry.read",
	"/spire.api.server.entry.v1.Entry/BatchCreateEntry": "entry.write",
	"/spire.api.server.entry.v1.Entry/BatchUpdateEntry": "entry.write",
	"/spire.api.server.entry.v1.Entry/BatchDeleteEntry": "entry.write",

	"/spire.api.server.agent.v1.Agent/CountAgents": "node.read",
	"/spire.api.server.agent.v1.Agent/ListAgents":  "node.read",
	"/spire.api.server.agent.v1.Agent/GetAgent":    "node.read",
	"/spire.api.server.agent.v1.Agent/BanAgent":    "node.write",
	"/spire.api.server.agent.v1.Agent/DeleteAgent": "node.write",
	"/assay.nodeadmin.v1.NodeAdmin/ListNodes":      "node.read",
	"/assay.nodeadmin.v1.NodeAdmin/GetNode":        "node.read",
	"/assay.nodeadmin.v1.NodeAdmin/Approve":        "node.write",
	"/assay.nodeadmin.v1.NodeAdmin/Suspend":        "node.write",
	"/assay.nodeadmin.v1.NodeAdmin/Readmit":        "node.write",
	"/assay.nodeadmin.v1.NodeAdmin/Ban":            "node.write",

	"/spire.api.server.bundle.v1.Bundle/ListFederatedBundles":                        "bundle.read",
	"/spire.api.server.bundle.v1.Bundle/GetFederatedBundle":                          "bundle.read",
	"/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle":                  "bundle.write",
	"/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle":                  "bundle.write",
	"/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle":                     "bundle.write",
	"/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle":                  "bundle.write",
	"/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships":       "bundle.read",
	"/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship":         "bundle.read",
	"/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship": "bundle.write",
	"/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship": "bundle.write",
	"/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship": "bundle.write",
	"/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle":                     "bundle.write",
}

// Methods are those that somebody may call, in order.
func Methods() []string { return slices.Sorted(maps.Keys(permissions)) }

// Callers says in words who may call a method.
func Callers(method string) []string {
	names := []struct {
		bit  access
		name string
	}{{anyone, "anyone"}, {local, "socket"}, {admin, "admin"}, {downstream, "downstream"}, {agent, "agent"}}
	var out []string
	for _, n := range names {
		if permissions[method]&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	if verb := verbs[method]; verb != "" {
		out = append(out, "role with "+verb)
	}
	return out
}
