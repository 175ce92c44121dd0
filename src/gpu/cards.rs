//! STUB while the real one is written.
use super::card::Card;
use super::choice::Device;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCard {
    #[error("the processor was asked for")]
    NotWanted,
}
pub struct Cards { device: Device, cards: Vec<Card> }
impl Cards {
    pub fn open(device: Device, _memory: Option<crate::size::ByteSize>, _fault: Option<Fault>) -> Self { Self { device, cards: if matches!(device, Device::Simulated{..}) { vec![Card::Simulated(super::simulated::SimulatedCard)] } else { Vec::new() } } }
    pub fn none() -> Self { Self { device: Device::Cpu, cards: Vec::new() } }
    pub fn device(&self) -> Device { self.device }
    pub(crate) fn wait(&self) -> Result<&[Card], NoCard> { if self.cards.is_empty() { Err(NoCard::NotWanted) } else { Ok(&self.cards) } }
    pub fn unavailable(&self) -> Option<NoCard> { self.wait().err() }
    #[cfg(test)]
    pub(crate) fn simulated(device: Device, cards: Vec<Card>) -> Self { Self { device, cards } }
}
#[derive(Debug, Clone)]
pub struct Fault(());
impl std::str::FromStr for Fault { type Err = String; fn from_str(_: &str) -> Result<Self, String> { Ok(Self(())) } }
