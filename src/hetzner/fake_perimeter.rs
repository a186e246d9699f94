use async_trait::async_trait;

use super::FakeCloud;
use super::fake::{existing, gone, selects};
use crate::ports::{ErrorCode, Firewall, FirewallRule, FirewallSpec, Perimeter, PortError, PortResult, Route};

#[async_trait]
impl Perimeter for FakeCloud {
    async fn firewalls(&self, selector: &str) -> PortResult<Vec<Firewall>> {
        let mut state = self.lock();
        state.begin("firewalls")?;
        Ok(state.firewalls.values().filter(|f| selects(selector, &f.labels)).cloned().collect())
    }

    async fn firewall_by_name(&self, name: &str) -> PortResult<Option<Firewall>> {
        let mut state = self.lock();
        state.begin("firewall_by_name")?;
        Ok(state.firewalls.values().find(|f| f.name == name).cloned())
    }

    async fn create_firewall(&self, spec: &FirewallSpec) -> PortResult<Firewall> {
        let mut state = self.lock();
        state.begin("create_firewall")?;
        let found = state.firewalls.values().find(|f| f.name == spec.name).map(|f| (f, &f.labels));
        let found = existing(found, &spec.labels, "firewall", &spec.name)?;
        state.log("create_firewall", &spec.name, found.is_none());
        if let Some(firewall) = found {
            return Ok(firewall);
        }
        let id = state.id();
        let firewall = Firewall {
            id,
            name: spec.name.clone(),
            rules: spec.rules.clone(),
            selectors: vec![spec.selector.clone()],
            servers: Vec::new(),
            labels: spec.labels.clone(),
        };
        state.firewalls.insert(id, firewall.clone());
        Ok(firewall)
    }

    async fn set_firewall_rules(&self, id: u64, rules: &[FirewallRule]) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("set_firewall_rules")?;
        let firewall = state.firewalls.get_mut(&id).ok_or_else(|| gone("firewall", id))?;
        firewall.rules = rules.to_vec();
        let name = firewall.name.clone();
        state.log("set_firewall_rules", &name, false);
        Ok(())
    }

    async fn apply_firewall(&self, id: u64, selector: &str) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("apply_firewall")?;
        let firewall = state.firewalls.get_mut(&id).ok_or_else(|| gone("firewall", id))?;
        if firewall.selectors.iter().any(|s| s == selector) {
            return Err(PortError::new(ErrorCode::Conflict, "the firewall is applied to this selector already"));
        }
        firewall.selectors.push(selector.to_owned());
        let name = firewall.name.clone();
        state.log("apply_firewall", &name, false);
        Ok(())
    }

    async fn delete_firewall(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_firewall")?;
        let firewall = state.firewalls.remove(&id).ok_or_else(|| gone("firewall", id))?;
        state.log("delete_firewall", &firewall.name, false);
        Ok(())
    }

    async fn add_route(&self, network: u64, route: &Route) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("add_route")?;
        let target = state.networks.get_mut(&network).ok_or_else(|| gone("network", network))?;
        if target.routes.iter().any(|r| r.destination == route.destination && r.gateway != route.gateway) {
            let message = format!("{} has another route to {}", target.name, route.destination);
            return Err(PortError::new(ErrorCode::Conflict, message));
        }
        if target.routes.contains(route) {
            return Ok(());
        }
        target.routes.push(route.clone());
        let name = target.name.clone();
        state.log("add_route", &name, true);
        Ok(())
    }

    async fn delete_route(&self, network: u64, route: &Route) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_route")?;
        let target = state.networks.get_mut(&network).ok_or_else(|| gone("network", network))?;
        target.routes.retain(|r| r != route);
        let name = target.name.clone();
        state.log("delete_route", &name, false);
        Ok(())
    }
}
