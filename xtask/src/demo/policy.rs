//! The policy of the demo's shop: what each role may reach and be reached by, and nothing else.

/// Who may reach what: (from role, to role, port, service name).
pub(crate) const ALLOWED: &[(&str, &str, u16)] = &[
    ("web", "app", 8080),
    ("app", "db", 5432),
    ("app", "cache", 6379),
    ("bastion", "web", 22),
    ("bastion", "app", 22),
    ("bastion", "db", 22),
    ("bastion", "cache", 22),
    ("monitoring", "web", 80),
    ("monitoring", "app", 8080),
    ("kiosk", "web", 80),
];

/// Every role.
pub(crate) const ROLES: &[&str] = &[
    "web",
    "app",
    "db",
    "cache",
    "bastion",
    "monitoring",
    "kiosk",
];

/// The documents: one policy a role, written from [`ALLOWED`] without the pairs in `without`; everybody enforces.
pub(crate) fn documents(without: &[(&str, &str, u16)]) -> String {
    let mut text = String::from(
        "# The shop: default deny, and what it needs to work.\n\
         apiVersion: cofferdam.dev/v1\nkind: Mode\nmetadata:\n  name: everybody-enforces\nspec:\n  subject: all\n  mode: enforce\n",
    );
    for role in ROLES {
        let pairs = || ALLOWED.iter().filter(|pair| !without.contains(pair));
        text.push_str(&format!(
            "---\napiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata:\n  name: {role}\n  owner: shop-team\nspec:\n  state: \
             enforced\n  subject:\n    matchLabels: {{role: {role}}}\n"
        ));
        text.push_str(&rules(
            "ingress",
            pairs()
                .filter(|(_, to, _)| to == role)
                .map(|(from, _, port)| (*from, *port)),
        ));
        text.push_str(&rules(
            "egress",
            pairs()
                .filter(|(from, _, _)| from == role)
                .map(|(_, to, port)| (*to, *port)),
        ));
    }
    text
}

fn rules<'a>(direction: &str, pairs: impl Iterator<Item = (&'a str, u16)>) -> String {
    let mut text = String::new();
    for (peer, port) in pairs {
        text.push_str(&format!(
            "    - action: allow\n      peers:\n        - selector:\n            matchLabels: {{role: {peer}}}\n      ports:\n        \
             - {{protocol: tcp, port: {port}}}\n"
        ));
    }
    if text.is_empty() {
        format!("  {direction}: []\n")
    } else {
        format!("  {direction}:\n{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_policy_that_closes_both_directions() {
        let text = documents(&[("app", "db", 5432)]);
        assert_eq!(text.matches("kind: Policy").count(), ROLES.len());
        assert_eq!(text.matches("  ingress:").count(), ROLES.len());
        assert_eq!(text.matches("  egress:").count(), ROLES.len());
        assert!(!text.contains("5432"));
        assert!(documents(&[]).contains("5432"));
    }
}
